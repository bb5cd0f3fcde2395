"""@article{Sorzano2015,
author = {Sorzano, Carlos Oscar S. and Vargas, Javier and de la Rosa-Trevin, Jose Miguel and Oton, Joaquin and
Alvarez-Cabrera, Ana Lucia and Abrishami, Vahid and Sesmero, Ester and Marabini, Roberto and Carazo, Jose Maria},
title = {A statistical approach to the initial volume problem in Single Particle Analysis by Electron Microscopy},
journal = {Journal of Structural Biology},
volume = {189},
number = {3},
pages = {213-219},
year = {2015},
doi = {https://doi.org/10.1016/j.jsb.2015.01.009}
}

@article{Strelak2019,
author = {Strelak, David and Sorzano, Carlos Oscar S. and Carazo, Jose Maria and Filipovic, Jiri},
title = {A GPU acceleration of 3-D Fourier reconstruction in cryo-EM},
journal = {The International Journal of High Performance Computing Applications},
volume = {33},
number = {5},
pages = {948-959},
year = {2019},
doi = {https://doi.org/10.1177/1094342019832958}
}

@article{Strelak2020,
author = {Strelak, David and Filipovic, Jiri and Jimenez-Moreno, Amaya and Carazo, Jose Maria and
Sanchez Sorzano, Carlos Oscar},
title = {FlexAlign: An Accurate and Fast Algorithm for Movie Alignment in Cryo-Electron Microscopy},
journal = {Electronics},
volume = {9},
number = {6},
pages = {1040},
year = {2020},
doi = {https://doi.org/10.3390/electronics9061040}
}

@phdthesis{Strelak2022,
author = {Strelak, David},
title = {Acceleration of image processing algorithms for single particle analysis with electron microscopy},
school = {Masaryk University and Universidad Autonoma de Madrid},
year = {2022}
}

@article{Strelak2023,
author = {Strelak, David and Marchan, Daniel and Carazo, Jose Maria and Sorzano, Carlos Oscar S.},
title = {Performance and Quality Comparison of Movie Alignment Software for Cryogenic Electron Microscopy},
journal = {Micromachines},
volume = {14},
number = {10},
pages = {1835},
year = {2023},
doi = {https://doi.org/10.3390/mi14101835}
}

@article{Chen2013,
author = {Chen, Shaoxia and McMullan, Greg and Faruqi, Abdul R. and Murshudov, Garib N. and Short, Judith M. and
Scheres, Sjors H. W. and Henderson, Richard},
title = {High-resolution noise substitution to measure overfitting and validate resolution in 3D structure
determination by single particle electron cryomicroscopy},
journal = {Ultramicroscopy},
volume = {135},
pages = {24-35},
year = {2013},
doi = {https://doi.org/10.1016/j.ultramic.2013.06.004}
}

@article{Grant2015,
author = {Grant, Timothy and Grigorieff, Nikolaus},
title = {Measuring the optimal exposure for single particle cryo-EM using a 2.6 A reconstruction of rotavirus VP6},
journal = {eLife},
volume = {4},
pages = {e06980},
year = {2015},
doi = {https://doi.org/10.7554/eLife.06980}
}
"""
